"""What transformers makes of small templates: python test/text/jinja_probes.py > test/text/jinja-probes.json (transformers 5.23)."""
import json
import sys

from transformers.utils.chat_template_utils import render_jinja_template

MESSAGES = [{"role": "user", "content": " \n hi there\n"}, {"role": "assistant", "content": [{"type": "text", "text": "yes"}]}]
TEMPLATES = [
    "{{ messages[0].content.strip('\\n') }}|", "{{ messages[0].content.strip() }}|", "{{ messages[0]['content'].rstrip('\\n ') }}|",
    "{{ '..a.b..'.lstrip('.') }}", "{{ 'xya yx'.strip('xy') }}", "{{ ' a '.strip(none) }}|", "{{ '\\ufeff a\\x1c' | trim }}|", "{{ '--a--' | trim('-') }}",
    "{{ True }} {{ false }} {{ none }} {{ missing }}", "{{ 1 == 1.0 }} {{ 1.0 }} {{ 2 }} {{ 7 / 2 }} {{ 7 // 2 }} {{ -7 % 3 }}",
    "{{ ['a', 1, none, true, 1.5] }}", "{{ ('a', 1) }} {{ -7 // 2 }}", "{{ {'a': 'it\\'s', 'b': [1]} }}", "{{ 'a' ~ true ~ 1 ~ none }}",
    "{{ true | string }}{{ 3 | string }}{{ [1, 'x'] | string }}", "{{ messages | tojson }}", "{{ messages | tojson(indent=2) }}",
    "{{ {'b': 1, 'a': 'é<'} | tojson(sort_keys=true) }}", "{{ [1, 2, 3] | join(', ') }} {{ ['a', 'b'] | join }}",
    "{{ messages | map(attribute='role') | join(',') }}", "{{ messages | selectattr('role', 'equalto', 'user') | list | length }}",
    "{{ messages | rejectattr('role', 'eq', 'user') | first | tojson }}", "{{ [3, 1, 2] | sort | join }} {{ messages | count }}",
    "{{ missing | default('d') }} {{ '' | default('e', true) }} {{ missing | d('f') }}", "{{ 'a,b,c'.split(',') | last }} {{ 'abc'.replace('b', 'x') }}",
    "{% for m in messages %}{{ loop.index }}{{ loop.first }}{{ loop.last }}{{ m.role | upper }};{% endfor %}",
    "{%- for m in messages -%}\n  {{- m.role -}}\n  {%- if not loop.last %}, {% endif -%}\n{%- endfor %}",
    "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + loop.index %}{% endfor %}{{ ns.n }}",
    "{% macro f(x, y='d') %}[{{ x }}{{ y }}]{% endmacro %}{{ f(1) }}{{ f('a', y=true) }}", "{% set x %}a{{ 1 }}b{% endset %}{{ x | upper }}",
    "{% if messages is iterable and messages is not string and messages[0] is mapping %}ok{% endif %}", "{{ 'x' in 'xyz' }} {{ 'role' in messages[0] }}",
    "{{ messages[0].nothing is defined }} {{ messages[0].role is defined }}", "{% for k, v in {'a': 1, 'b': 2}.items() %}{{ k }}={{ v }} {% endfor %}",
    "{% for i in range(5) %}{% if i == 1 %}{% continue %}{% elif i == 3 %}{% break %}{% endif %}{{ i }}{% endfor %}", "{{ 'yes' if messages else 'no' }}{{ 'b' if false }}|",
    "  {% if true %}\n  kept\n  {% endif %}\nend\n", "{# a note #}\ntext {#- more -#}\n here", "{{ messages[::-1][0].role }} {{ messages[-1].role }} {{ 'abcdef'[1:3] }}",
    "{{ 'hello world'.title() }} {{ 'hELLO' | capitalize }} {{ 'aBc'.upper() }}", "{{ '\\u4f60\\n\\t' }}|", "{{ messages[0].content.split() | join('-') }}",
    "{{ 'ab'.startswith('a') }}{{ 'ab'.endswith(('x', 'b')) }}", "{{ [1, 2] + [3] }}",
    "{% generation %}a{% endgeneration %}b\n{%- generation -%} c {%- endgeneration %}\nd", "{{ messages[1].content[0]['text'] }} {{ messages[1].content[0].text | length }}",
]
GENERATION = "{% for m in messages %}{{ m.role + ':' }}{% if m.role == 'assistant' %}\n  {% generation %}\n{{ m.content[0].text }}!{% endgeneration %}\n{% endif %};{% endfor %}"

probes = []
for template in TEMPLATES + [GENERATION]:
    texts, spans = render_jinja_template([MESSAGES], chat_template=template, return_assistant_tokens_mask="generation" in template)
    probes.append({"template": template, "text": texts[0], "spans": [list(s) for s in spans[0]] if spans else []})
json.dump({"messages": MESSAGES, "probes": probes}, sys.stdout, ensure_ascii=False, indent=1)
print()
