data_path = "/nowhere"
models_path = "/nowhere/models"
