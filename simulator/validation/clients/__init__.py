"""Result files of serving benchmark clients, each as a ``Measured`` run."""
