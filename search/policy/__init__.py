"""What finished trials teach: judging, stopping, deploying otherwise."""
