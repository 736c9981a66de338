// panic: stops the machine with a backtrace.

extension CommandDescription {
  static var panic: CommandDescription {
    CommandDescription(
      name: "panic", usage: "panic",
      about: "Stops the machine with a backtrace, exit status 37.",
      example: "panic", question: .tuning,
      arguments: .none)
  }
}

extension Shell {
  func panic() { state.pointee.host.panic() }
}
