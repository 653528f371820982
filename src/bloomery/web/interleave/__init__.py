"""Documents of text and images from PDF files and LaTeX sources."""
