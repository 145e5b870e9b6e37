"""Types of ``conf/`` and their checks; the YAML files hold the defaults."""
