"""A page to hear codecs: what a visitor gave, what is made of it, the page, and its server.

Only page.py and serve.py know Gradio; the others compute and can be used without a page.
"""
