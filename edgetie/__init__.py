"""edgetie"""
