"""Ray services of gradlens, installed as `gradlens_services`: job, trainer, controller, recorder, lens, api."""
