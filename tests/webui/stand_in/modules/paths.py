data_path = "/dev/null/nowhere"
models_path = "/dev/null/nowhere/models"
