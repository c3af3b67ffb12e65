from modules.textual_inversion.textual_inversion import EmbeddingDatabase


class StableDiffusionModelHijack:
    def __init__(self):
        self.embedding_db = EmbeddingDatabase()
        self.optimizations = []

    def apply_optimizations(self, option=None):
        self.optimizations.append(option)


model_hijack = StableDiffusionModelHijack()
