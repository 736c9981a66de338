import MemoryPrimitives
extension Console {
  func failures() throws(CommandError) { if !isJSON { print("No request has been refused.") } }
}
