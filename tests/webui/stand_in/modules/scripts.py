scripts_data = []


class ScriptRunner:
    """Of no scripts."""
