"""The admin API: keys, workspaces, what was asked and what it cost, over HTTP and for the command line."""

from llmproxy.admin.audit import AuditTrail
from llmproxy.admin.endpoints import AdminEndpoints

__all__ = ["AdminEndpoints", "AuditTrail"]
