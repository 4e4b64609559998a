"""What people look at: the report, the page of a comparison, figures, templates, HTML pieces.

Pages are made from finished values that ``runs`` reads; nothing is computed from pictures here.
"""
