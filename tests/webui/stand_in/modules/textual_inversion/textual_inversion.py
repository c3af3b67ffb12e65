import os
from collections import namedtuple

import torch
from safetensors.torch import load_file

from modules import shared

TextualInversionTemplate = namedtuple("TextualInversionTemplate", ["name", "path"])
textual_inversion_templates = {}


class Embedding:
    def __init__(self, vec, name, step=None):
        self.vec, self.name, self.step = vec, name, step
        self.shape, self.vectors, self.filename, self.shorthash = None, 0, None, None


class EmbeddingDatabase:
    def __init__(self):
        self.ids_lookup, self.word_embeddings, self.expected_shape = {}, {}, -1

    def register_embedding_by_name(self, embedding, model, name):
        first = model.cond_stage_model.tokenize([name])[0][0]
        rest = [entry for entry in self.ids_lookup.pop(first, []) if entry[1].name != name]
        self.word_embeddings.pop(name, None)
        if embedding is not None:
            rest.append((model.cond_stage_model.tokenize([name])[0], embedding))
            self.word_embeddings[name] = embedding
        if rest:
            self.ids_lookup[first] = sorted(rest, key=lambda entry: len(entry[0]), reverse=True)
        return embedding

    def get_expected_shape(self):
        return shared.sd_model.cond_stage_model.encode_embedding_init_text(",", 1).shape[1]

    def load_textual_inversion_embeddings(self, force_reload=False):
        self.ids_lookup.clear()
        self.word_embeddings.clear()
        self.expected_shape = self.get_expected_shape()
        for file in sorted(os.listdir(shared.cmd_opts.embeddings_dir)):
            path = os.path.join(shared.cmd_opts.embeddings_dir, file)
            if path.endswith(".safetensors"):
                content = vectors = load_file(path)
                parts = content.values()
            else:
                content = torch.load(path, map_location="cpu", weights_only=True)
                vectors = content["string_to_param"]["*"]
                parts = [vectors]
            embedding = Embedding(vectors, os.path.splitext(file)[0], content.get("step"))
            embedding.vectors, embedding.shape = len(next(iter(parts))), sum(part.shape[1] for part in parts)
            embedding.filename = path
            if embedding.shape == self.expected_shape:
                self.register_embedding_by_name(embedding, shared.sd_model, embedding.name)
