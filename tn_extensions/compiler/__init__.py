"""From networks to tensors: plans made of a few primitives, chosen by cost."""

from tn_extensions.compiler.budget import memory_budget
from tn_extensions.compiler.listing import Plans, plans
from tn_extensions.compiler.plan import Plan, plan, register, unregister
from tn_extensions.compiler.planning import planning

__all__ = [
    "Plan",
    "Plans",
    "memory_budget",
    "plan",
    "planning",
    "plans",
    "register",
    "unregister",
]
