"""A kit for what people read: HTML pages, charts, formats of numbers, the console, published figures."""
