from .builtin import TASKS as TASKS
from .images import Split as Split
from .loading import load_task as load_task
from .task import Task as Task
