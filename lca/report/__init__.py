"""What finished runs show: tables and figures."""
