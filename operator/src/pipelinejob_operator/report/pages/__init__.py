"""HTML pages, a module and a template each; a page is one file that needs nothing else."""
