import SwiftUI

@main
struct StarterApp: App {
    var body: some Scene {
        WindowGroup { ContentView() }
    }
}

/// Asks the model, outside the main thread.
@MainActor
final class Conversation: ObservableObject {
    @Published var text = ""
    @Published var busy = false
    private var model: Model?
    private var stop = Stop()

    func ask(_ prompt: String) {
        text += "\n" + prompt + "\n"
        busy = true
        stop = Stop()
        let (opened, stop) = (model, stop)
        Task.detached {
            do {
                let model = try opened ?? Model(folder: Bundle.main.bundlePath)
                try model.answer(prompt) { part in
                    Task { @MainActor in self.text += part }
                    return !stop.isSet
                }
                print("run by \(model.provider)")
                await self.end(model, nil)
            } catch {
                await self.end(opened, error.localizedDescription)
            }
        }
    }

    func stopAnswer() { stop.set() }

    func reset() {
        model?.reset()
        text = ""
    }

    private func end(_ model: Model?, _ problem: String?) {
        self.model = model
        text += (problem.map { "\n" + $0 } ?? "") + "\n"
        busy = false
    }
}

/// A flag that one thread sets and another reads.
final class Stop: @unchecked Sendable {
    private let lock = NSLock()
    private var value = false

    var isSet: Bool { lock.withLock { value } }
    func set() { lock.withLock { value = true } }
}

struct ContentView: View {
    @StateObject private var conversation = Conversation()
    @State private var prompt = "What is the capital of France?"

    var body: some View {
        VStack(alignment: .leading) {
            ScrollView {
                Text(conversation.text)
                    .textSelection(.enabled)
                    .frame(maxWidth: .infinity, alignment: .leading)
            }
            TextField("Prompt", text: $prompt, axis: .vertical)
                .textFieldStyle(.roundedBorder)
            HStack {
                if conversation.busy {
                    Button("Stop") { conversation.stopAnswer() }
                } else {
                    Button("Send") {
                        conversation.ask(prompt)
                        prompt = ""
                    }
                    Button("New") { conversation.reset() }
                }
            }
        }
        .padding()
    }
}
