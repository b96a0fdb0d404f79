from .augmenting import augmentation as augmentation
from .images import Split as Split
from .loading import load_task as load_task
from .task import TASKS as TASKS
from .task import Task as Task
from .task import register_task as register_task
