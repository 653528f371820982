"""Documents of text and images from web pages, PDF files and LaTeX sources."""
