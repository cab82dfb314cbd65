"""Shows finished runs as tables and figures."""
