"""Extensions that an installed package can add to ticketry, one module each."""
