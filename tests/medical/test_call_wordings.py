"""Ways to order the emergency call, and ways to name it without ordering it now.

python -m pytest tests/medical/test_call_wordings.py
"""

from lib.medical.emergency_call import names_call

ORDERS = """Get an ambulance on its way now.
Get on the phone to 999 this minute.
You need paramedics there, fast.
Phone for help: 999, speaker on.
Shout for someone to phone an ambulance.
Somebody must ring 112 while you press.
Have your mum call 911.
Send a mate to call for an ambulance.
Ambulance, straight away.
999. Now.
911 first, then everything else.
First things first: emergency services.
Step 1 - ring the emergency number.
1. Call 911.
1) Emergency services on loudspeaker.
Dial your emergency number, whatever it is where you live.
Put 999 on speaker and start.
Your first move is the phone: 000.
Don't hang about, get the ambulance service on the line.
Call for an ambulance straight off.
This needs an ambulance, not a taxi.
He needs an ambulance right away.
Ask a bystander to ring triple zero.
Get emergency help on the way.
Please ring for an ambulance before you do anything else.
I'd be calling 911 right now.
You should be on to 999 already.
It's an emergency, so call 112 and say 'stroke'.
Get the paramedics out.
Call the emergency services without waiting.
One person calls an ambulance; the other presses.
While someone calls for an ambulance, press hard.
With the phone on speaker to the emergency line, start pressing.
Ring them now: 999 in the UK, 911 in the US.
Phone 999 or 112 and don't hang up.
Tell the person next to you to dial 911.
Make the 999 call now.
An ambulance has to be called now.
Emergency services need to be there quickly, so ring them.
Even if he wakes, call an ambulance.
Alert mountain rescue on 112.
Text 112 if you cannot speak.
Get somebody to fetch the festival medics or dial 999.
Once you're outside, ring 999.
As soon as she's out, call the emergency number.
You want an ambulance for this.
Triple zero, please, this second.
Radio for an ambulance.
Use the SOS button on your phone to reach emergency services."""
OTHERS = """Call an ambulance if he gets worse.
Call your doctor in the morning.
If it isn't better in an hour, ring 999.
There's no need to call an ambulance.
You could call an ambulance but it seems over the top.
Cool it for 20 minutes, then call an ambulance.
Once the bleeding has stopped, call 999.
When you get home, ring the emergency services.
Call 111 for advice.
Wait ten minutes before you ring 999.
An ambulance would only take longer, so drive him.
Don't bother the ambulance.
Only ring 999 if she stops breathing.
Call a friend.
Drive him to the hospital.
The ambulance crew will cool him.
After he wakes up, phone an ambulance.
Ambulances are for emergencies, this isn't one.
Try the antacid first and call 911 only if that fails.
Ring your GP tomorrow.
If he is still unconscious in half an hour, call 911.
See how she goes overnight, and call an ambulance in the morning if she's no better.
Skip the ambulance and take a taxi.
Give it a while before calling 999.
Keep 999 on standby.
I don't think you need an ambulance.
Have the number for an ambulance ready.
Save the ambulance for someone who needs it.
Ambulances take ages these days.
Last resort is 999."""


def test_orders_count():
    assert [text for text in ORDERS.splitlines() if not names_call(text)] == []


def test_nothing_else_does():
    assert [text for text in OTHERS.splitlines() if names_call(text)] == []
