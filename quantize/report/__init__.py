"""The report of a quantization: what it holds, its tables and plots, and the document made of them."""
