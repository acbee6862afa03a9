"""The kernel's interface: system calls, ``/proc``, namespaces, and every number they need."""
