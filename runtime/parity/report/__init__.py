"""The report of a parity run: what it holds, its tables and plots, and the document made of them."""
