// poweroff: leaves the machine.

extension CommandDescription {
  static var poweroff: CommandDescription {
    CommandDescription(
      name: "poweroff", usage: "poweroff",
      about: "Leaves, exit status 33.",
      example: "poweroff", question: .tuning,
      synonyms: "exit quit halt shutdown",
      arguments: .none)
  }
}

extension Shell {
  func poweroff() { leave(.success) }
}
