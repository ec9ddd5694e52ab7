"""The tour of the embedded model: it reads long documents it has never seen, and a page shows what it found."""

from lwm.demo.tour import DemoConfig, DemoReport, run_demo

__all__ = ["DemoConfig", "DemoReport", "run_demo"]
