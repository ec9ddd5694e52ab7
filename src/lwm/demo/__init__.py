"""The tour of the embedded model: it reads, draws, films, tells what it has never seen, and a page shows how well."""

from lwm.demo.tour import DemoConfig, DemoReport, run_demo

__all__ = ["DemoConfig", "DemoReport", "run_demo"]
