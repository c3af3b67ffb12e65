"""The small app: pictures, training and utilities on a page of one's own, on diffusers and gradio 3.41.2."""
