"""Package metadata of kvjax; the one place for it."""

import pathlib
import re
import runpy

from setuptools import Distribution, find_packages, setup
from setuptools.command.build_py import build_py

ROOT = pathlib.Path(__file__).parent


def read(path: str) -> str:
  file = ROOT / path
  return file.read_text(encoding='utf-8') if file.exists() else ''


def version() -> str:
  # By text: importing kvjax would need JAX before it is installed.
  found = re.search(r"__version__ = '(.+?)'", read('kvjax/__init__.py'))
  if found is None:
    raise ValueError('kvjax/__init__.py states no __version__.')
  return found.group(1)


class BuildWithKernels(build_py):
  """Compiles the CPU kernel for this machine, where a compiler can."""

  def run(self):
    super().run()
    home = ROOT if self.editable_mode else pathlib.Path(self.build_lib)
    library = runpy.run_path(str(ROOT / 'kvjax' / 'native' / 'build.py'))
    try:
      library['build'](home / 'kvjax' / 'native')
    except (library['BuildError'], OSError) as error:
      print(f'kvjax goes without its CPU kernel: {error}')


class Native(Distribution):
  """A wheel holds the kernel of the machine that made it, and says so."""

  def has_ext_modules(self):
    return True


setup(
  name='kvjax',
  version=version(),
  description='What a transformer must remember while it generates, in JAX.',
  long_description=read('README.md'),
  long_description_content_type='text/markdown',
  license='Apache-2.0',
  license_files=['LICENSE'],
  cmdclass={'build_py': BuildWithKernels},
  distclass=Native,
  # An editable installation is then one line of a .pth file. Through the import
  # hook that setuptools prefers, Python would take the folder of a clone, seen
  # from the folder above, for the package.
  options={'editable_wheel': {'mode': 'compat'}},
  packages=find_packages(include=['kvjax', 'kvjax.*']),
  package_data={'kvjax': ['py.typed', '**/*.json', '**/*.cc', '**/*.h']},
  python_requires='>=3.11',
  install_requires=[
    'absl-py>=2.1',
    'chex>=0.1.90',
    'flax>=0.12,<0.13',
    'jax>=0.10,<0.13',
    'ml_collections>=1.0',
    'numpy>=2.0',
    'optax>=0.2.5',
    'safetensors>=0.8',
  ],
  extras_require={
    'docs': [
      'mkdocs-material==9.8.2',
      'mkdocstrings==1.0.8',
      'mkdocstrings-python==2.0.11',
      'nbconvert==7.17.2',
      'ruff==0.17.6',
    ],
    'cluster': ['submitit>=1.5'],
    'export': ['flatbuffers>=24.3.25'],
    'test': [
      'flatbuffers>=24.3.25',
      'gguf>=0.19',
      'huggingface_hub>=0.30',
      'hypothesis>=6.100',
      'ipykernel>=6.29',
      'jinja2>=3.1.6',
      'nbclient>=0.10.1',
      'nbformat>=5.10',
      'pyright[nodejs]==1.1.414',
      'pytest>=8',
      'pytest-xdist>=3.6',
      'ruff==0.17.6',
      'submitit>=1.5',
      'tokenizers>=0.21',
    ],
    'report': ['matplotlib>=3.9', 'rich>=13'],
    'hf': ['jinja2>=3.1.6', 'tokenizers>=0.21'],
    'gguf': ['gguf>=0.19', 'jinja2>=3.1.6', 'tokenizers>=0.21'],
    'hub': ['huggingface_hub>=0.30'],
    'cuda': ['jax[cuda13]'],
  },
  classifiers=[
    'Intended Audience :: Science/Research',
    'Programming Language :: Python :: 3.11',
    'Programming Language :: Python :: 3.12',
    'Programming Language :: Python :: 3.13',
    'Topic :: Scientific/Engineering :: Artificial Intelligence',
  ],
)
