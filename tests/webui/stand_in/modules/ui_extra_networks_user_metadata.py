class UserMetadataEditor:
    def __init__(self, ui, tabname, page):
        self.ui, self.tabname, self.page = ui, tabname, page

    def get_user_metadata(self, name):
        return self.page.items[name]["user_metadata"]

    def put_values_into_components(self, name):
        notes = self.get_user_metadata(name)
        return name, notes.get("description", ""), "", "", notes.get("notes", "")

    def get_metadata_table(self, name):
        return [("Filename: ", name)]

    def save_user_metadata(self, name, desc, notes):
        self.get_user_metadata(name).update(description=desc, notes=notes)
