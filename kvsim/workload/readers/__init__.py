"""workload/readers"""
