"""How operators on a table act on the rows that are looked up in it, and on products with it."""
