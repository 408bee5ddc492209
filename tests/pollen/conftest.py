"""How hypothesis runs in these tests: without a deadline, since the machine is shared; bounded times are measured."""

import hypothesis

hypothesis.settings.register_profile("pollen", deadline=None)
hypothesis.settings.load_profile("pollen")
