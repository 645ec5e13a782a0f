"""What ament installs; the node itself is in the Python package edge-sfda."""

from setuptools import setup

NAME = "edge_sfda_ros"

setup(
    name=NAME,
    version="0.1.0",
    packages=[NAME],
    data_files=[
        ("share/ament_index/resource_index/packages", [f"resource/{NAME}"]),
        (f"share/{NAME}", ["package.xml"]),
        (f"share/{NAME}/launch", ["launch/edge_sfda.launch.xml"]),
        (f"share/{NAME}/config", ["config/edge_sfda.yaml"]),
    ],
    install_requires=["setuptools"],
    zip_safe=True,
    license="Apache-2.0",
    description="The node of the Python package edge-sfda.",
    entry_points={"console_scripts": [f"node = {NAME}.node:main"]},
)
