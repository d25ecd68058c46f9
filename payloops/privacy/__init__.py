"""`payloops privacy`: showing and erasing personal data of merchants' customers. For operators."""
