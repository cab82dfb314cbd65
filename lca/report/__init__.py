"""Shows finished runs as tables and figures."""

from lca.report.frames import frame as frame
from lca.report.frames import rows as rows
