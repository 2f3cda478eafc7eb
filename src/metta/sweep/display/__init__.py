"""What people see in a terminal: tables, lines, and the live display of a running sweep."""
