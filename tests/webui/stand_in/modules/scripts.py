scripts_data = []
