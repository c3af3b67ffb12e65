import gradio as gr


class FormRow(gr.Row): ...
