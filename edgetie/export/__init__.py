"""Export a torch module to a bundle: trace it, optimize its graphs, write and verify them.

Importing it raises :class:`~edgetie.errors.SourceError` if torch or transformers is missing.
"""

from edgetie.sources.load import require_export_packages

require_export_packages()
