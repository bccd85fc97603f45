"""The old names, until their callers know the new modules."""

from checkpoints.build import build_model as build_model
from checkpoints.file import save as save
from checkpoints.file import write as write
from checkpoints.folder import best_of as best_of
from checkpoints.folder import find as find
from checkpoints.folder import find_newest as find_newest
from checkpoints.folder import has_own as has_own
from checkpoints.folder import lock as lock
from checkpoints.folder import set_aside as set_aside
from checkpoints.folder import write_run_id as write_run_id
from checkpoints.load import FORMAT as FORMAT
from checkpoints.load import Damaged as Damaged
from checkpoints.load import load as load
from checkpoints.publish import saved as saved
from checkpoints.saver import Saver as Saver
