"""The generated JSON Schemas are current and true. (Being written now by the schemas helper.)"""
