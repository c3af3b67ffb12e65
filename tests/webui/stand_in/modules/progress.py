current_task = None
pending_tasks = {}
recorded_results = []
finished_tasks = []


def create_task_id(task_type):
    return f"task({task_type})"


def add_task_to_queue(id_job):
    pass


def start_task(id_task):
    pass


def finish_task(id_task):
    pass


def record_results(id_task, res):
    recorded_results.append((id_task, res))
