"""What is shown of an evaluation: tables, one page to read and hear, lists for other tools."""
