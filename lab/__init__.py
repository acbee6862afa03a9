"""The lab: machines with container engines, and the scenarios that must hold on them."""
