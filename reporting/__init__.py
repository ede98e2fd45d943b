"""What every report is made of: tables of text, plots, and the HTML or Markdown document around them."""
