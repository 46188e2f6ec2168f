"""From a torch module to a bundle: trace, passes, proof, files.

Importing it raises :class:`~edgetie.errors.SourceError` where torch or transformers is missing.
"""

from edgetie.sources.load import require_export_packages

require_export_packages()
